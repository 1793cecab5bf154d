"""The network: a CNN encoder, attention and an LSTM decoder. Knows no files and no data sets."""
