"""Distillation: a student learns from the answers, and the inner layers, of a teacher."""
