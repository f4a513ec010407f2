"""The truth about jobs, in Redis: one Lua script a transition."""
