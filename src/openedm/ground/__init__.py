"""Tools without mathematics that every room uses: choices, checks, storage, seeding and devices."""
