"""Probes read frozen latents: how much of the world is in them, and how easily can it be had?"""
