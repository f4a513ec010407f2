"""Users' own rows: files of JSONL, CSV or Parquet, what their rows mean, and the store of uploads."""
