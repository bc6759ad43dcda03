"""Named small fleets with a model and a policy each; `echelon init --example` copies them."""
