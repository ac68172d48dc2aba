"""Messages to prompts, replies to messages."""
