"""The machinery of `preflight`: a compiled program, its figures, a search over meshes."""
