"""The passes over rows that steps and reads are made of: one interface, an implementation for each kind of device."""
