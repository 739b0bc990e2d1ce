"""Foundations: the multilayer perceptron."""
