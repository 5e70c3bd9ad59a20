"""The paper's case study, emulated and measured."""
