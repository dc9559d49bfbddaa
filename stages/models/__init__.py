"""The networks, as plain `nn.Module`s: normalized float32 NCHW batch -> (logits, embedding). Registry: `MODELS`."""
