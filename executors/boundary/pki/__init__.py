"""Who is who: identities, certificates and keys of a run."""
