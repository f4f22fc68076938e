"""Label-balanced sampling, the encoder, the Trainer, and what makes long runs safe."""
