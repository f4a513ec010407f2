"""What stage eval does, step by step: problems, models, asking, comparing, the report."""
