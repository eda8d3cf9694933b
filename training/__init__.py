"""How the shipped text model is made: data, training, calibration, export. Nothing here runs in a service."""
