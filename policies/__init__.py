"""Rules and evidence: errors, access tiers, what may cross a boundary, and the audit of it.

fleet + model + policy -> cost model -> problem -> solver -> plan (+ certificate)
-> executor -> boundary sync -> audit
"""
