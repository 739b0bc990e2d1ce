"""The computation graph of any model, drawn from one real forward pass, and the chain rule, checked by differences.

trace.py records, fold.py groups operators into modules, layout.py places, draw.py draws, drawing.py does all of it;
gradcheck.py checks; subject.py says what is traced: a size of the catalog on example inputs, or a run on its own data.
"""
