"""Pilots that wait for work: tickets, the process that holds their connections, and the news that wakes them."""
