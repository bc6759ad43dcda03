"""Carry a plan out: with a training framework, or in virtual time.

fleet + model + policy -> cost model -> problem -> solver -> plan (+ certificate)
-> executor -> boundary sync -> audit
"""
