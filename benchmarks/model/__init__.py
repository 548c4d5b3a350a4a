"""The tokenizer, encode and decode."""
