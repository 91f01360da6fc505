"""The GLIP network: encoders, deep fusion, head, loss and decoding."""
