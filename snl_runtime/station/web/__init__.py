"""A station's screen: a page, its data and its pictures, served by the station itself."""
