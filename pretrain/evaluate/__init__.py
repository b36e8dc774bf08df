"""Downstream evaluation."""
