"""Getting a base model: found, fetched or unpacked as a Hugging Face folder."""
