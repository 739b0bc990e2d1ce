"""What turns a Recipe into a Run: the only training loop and what it stands on. Knows Task and nn.Module, no domain."""
