"""LUNA16: its files, and how it scores the detection of lung nodules (Setio et al. 2017)."""
