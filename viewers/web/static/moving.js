// Moving the pictures by keys: a tenth of the window at a time.
import { boxOf, centre, viewport } from "./objects.js";

export function objectsMove([down, right]) {
  const box = boxOf();
  viewport.move((down * box.clientHeight) / 10, (right * box.clientWidth) / 10);
  centre();
}
