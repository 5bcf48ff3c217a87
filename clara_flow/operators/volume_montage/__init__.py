"""Volume montage: three sections of a volume with the outline of its mask, as one PNG."""
