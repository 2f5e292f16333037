"""Run records, and the tables and the HTML page that show them.

Tables and page are pure functions of the record: the same record gives the same bytes.
"""
