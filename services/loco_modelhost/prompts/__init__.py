"""From messages to a prompt, by the rule Ollama follows."""
