"""The network: encoder, decoder and what they are built of."""
