"""Analyses: plain functions of a program, remembered by its fingerprint."""
