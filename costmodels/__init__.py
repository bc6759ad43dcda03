"""What the hardware and the model are, and what it costs to put one on the other.

fleet + model + policy -> cost model -> problem -> solver -> plan (+ certificate)
-> executor -> boundary sync -> audit
"""
