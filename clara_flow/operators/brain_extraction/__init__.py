"""Brain extraction: a T1-weighted MR head goes in, a mask of the brain comes out. Not for diagnosis.

`extraction` is the method, `network` runs its two networks, `prepare_model` makes their files of the package deepbet.
"""
