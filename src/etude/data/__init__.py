"""Where batches come from: sources, the order of samples, augmentation. Knows no engine."""
