"""OpenAI's API on the same ledger: files, fine-tuning jobs, models and chats (docs/openai.md)."""
