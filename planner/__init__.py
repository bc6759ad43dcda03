"""From a fleet, a model and a policy to a training topology with a proven distance from the best one.

fleet + model + policy -> cost model -> problem -> solver -> plan (+ certificate)
-> executor -> boundary sync -> audit
"""
