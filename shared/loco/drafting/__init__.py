"""From rows to a task of one's own: the recipe, the split of rows, and what is wrong with either."""
