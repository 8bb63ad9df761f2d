"""Grafana's dashboards of Glinthawk, built with Grafana's own SDK; the chart has their JSON.

    make chart

They know names of metrics and the labels that monitoring puts on them (`labels` in parts.py), and
import nothing of the product: a test runs every query against figures of a live one.
"""
