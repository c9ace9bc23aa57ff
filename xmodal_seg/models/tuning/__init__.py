# SPDX-License-Identifier: Apache-2.0
"""Tuning of a frozen vision transformer by small modules inside it (after CrossEarth-Gate, arXiv 2511.20302)."""
