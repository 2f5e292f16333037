"""A run record goes in, tables and one HTML page come out. Pure: the same record gives the same bytes."""
