"""Questions put to a server, several at once, and every answer kept on disk."""
