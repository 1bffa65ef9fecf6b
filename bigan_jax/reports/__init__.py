"""What people look at: charts, image grids, overlays, tables, HTML, files of an evaluation."""
