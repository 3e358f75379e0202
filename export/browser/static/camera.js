// The camera as a stream of pictures.

export class CameraError extends Error {}

const REASONS = {
  NotAllowedError: "The camera was refused. Allow it for this page in the browser's settings and try again.",
  NotFoundError: "No camera was found on this device.",
  NotReadableError: "The camera can't be read. Does another program use it?",
};

/** Show the camera in a <video>, the one that looks away from the user if there are two.
 * @param {HTMLVideoElement} video
 * @param {() => void} lost is called when the camera is pulled out or taken away
 * @returns {Promise<() => void>} stops it
 * @throws {CameraError} one sentence that says what to do */
export async function open(video, lost) {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new CameraError("Browsers lend the camera only to pages on https or on localhost. Photos work here as well.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new CameraError(REASONS[error.name] ?? `The camera can't be opened: ${error.message}`);
  }
  for (const track of stream.getTracks()) track.addEventListener("ended", lost);
  const close = () => {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  };
  video.srcObject = stream;
  try {
    await video.play();
  } catch (error) {
    close();
    throw new CameraError(`The camera's picture can't be shown: ${error.message}`);
  }
  return close;
}

/** The next picture that was not there before. */
export function nextFrame(video) {
  return new Promise((resolve) => video.requestVideoFrameCallback(resolve));
}
