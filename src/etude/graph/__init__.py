"""The computation graph of any model, drawn from one real forward pass, and the chain rule checked by finite differences.

trace.py records, fold.py groups operators into modules, layout.py places, draw.py and page.py draw, gradcheck.py checks,
subject.py says what is traced: a size of the catalog with example inputs, or a run with a batch of its data.
"""
