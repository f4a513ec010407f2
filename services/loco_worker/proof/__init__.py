"""Whether what serves is what was exported: the checks of stage register."""
