"""Servers, processes and checks that tests share."""
