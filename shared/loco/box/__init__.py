"""Everything on one machine: started, watched, examined."""
