"""Prefect blocks: named, reusable configuration with secrets."""
