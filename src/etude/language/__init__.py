"""Language: the Transformer, GPT and BERT."""
