"""Networks that make what they have seen: generative adversarial networks."""
