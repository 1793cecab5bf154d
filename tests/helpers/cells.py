"""Where the cells of a feature grid lie in an image."""


def cell_box(
    row: int, col: int, grid: tuple[int, int], image_size: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return the pixels (left, top, right, bottom) that belong to one grid cell.

    A pixel belongs to the cell in which its centre lies, so the boxes of all cells tile the
    picture. Boxes are empty where the grid is finer than the picture.

    Args:
        row: Row of the cell, from the top.
        col: Column of the cell, from the left.
        grid: (H, W) of the feature grid.
        image_size: (width, height) of the picture.
    """
    (height_cells, width_cells), (width, height) = grid, image_size

    def edge(index: int, pixels: int, cells: int) -> int:
        return -((cells - 2 * index * pixels) // (2 * cells))  # ceil(index * pixels / cells - 1/2)

    return (
        edge(col, width, width_cells),
        edge(row, height, height_cells),
        edge(col + 1, width, width_cells),
        edge(row + 1, height, height_cells),
    )
