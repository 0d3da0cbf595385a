"""Kinds of bases: how a gradient is projected and lifted back."""
